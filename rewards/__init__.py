"""Rewards, one file each, found by name (`rewards.base.load`). Training and evaluation score with the same functions."""

from rewards.base import Report, Reward, RewardContext, RewardItem, load, names

__all__ = ["Report", "Reward", "RewardContext", "RewardItem", "load", "names"]
