"""Rewards, one file each, found by name (`rewards.base.load`); training and evaluation score with the same functions."""

from rewards.base import Reward, RewardContext, RewardItem, load, names

__all__ = ["Reward", "RewardContext", "RewardItem", "load", "names"]
