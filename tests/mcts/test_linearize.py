"""Linearization of hand-made trees: direct and corrected chains, duplicates, order, invalid chains."""

from __future__ import annotations

from fgrpo.response import parse
from mcts.linearize import linearize
from mcts.tree import Node, Tree, read_chain
from tests.mcts.scripted import node, tree

LEFT, RIGHT = "</think><answer>left</answer>", "</think><answer>right</answer>"
BOX = "A <bbox>[0,0,8,8]</bbox>"


def texts(grown_tree: Tree, kind: str) -> list[str]:
    return [trace.text for trace in linearize(grown_tree) if trace.kind == kind]


def test_a_direct_chain_ends_in_a_node_or_is_completed_by_a_rollout() -> None:
    grown_tree = tree(
        node(
            "0",
            "",
            node("0.0", BOX, node("0.0.0", "so left", answer="left"), ends=["b\nc" + LEFT, "b" + RIGHT]),
            node("0.1", "direct", answer="left"),
        )
    )
    assert texts(grown_tree, "direct") == [
        f"<think>direct{LEFT}",
        f"<think>{BOX}\nso left{LEFT}",
        f"<think>{BOX}\nb\nc{LEFT}",
    ]
    assert [trace.id for trace in linearize(grown_tree)][:3] == [f"toy/train/1/direct-{i}" for i in range(3)]
    assert linearize(grown_tree)[1].meta == {"nodes": ["0.0.0"], "steps": 2}
    assert all(parse(trace.text).well_formed for trace in linearize(grown_tree))
    assert len(parse(linearize(grown_tree)[1].text).boxes) == 1


def test_a_corrected_chain_turns_at_the_parent_of_both_branches() -> None:
    grown_tree = tree(
        node(
            "0",
            "",
            node(
                "0.0",
                "start",
                node("0.0.0", "astray", ends=["worse\nlost" + RIGHT, "oh" + RIGHT]),
                node("0.0.1", "well", ends=["so" + LEFT, "so it is" + LEFT]),
            ),
        )
    )
    assert texts(grown_tree, "corrected") == [f"<think>start\nastray\noh\nWait, no.\nwell\nso{LEFT}"]
    (corrected,) = [trace for trace in linearize(grown_tree) if trace.kind == "corrected"]
    assert corrected.id == "toy/train/1/corrected-0" and corrected.meta["nodes"] == ["0.0.0", "0.0.1"]
    parsed = parse(corrected.text)
    assert parsed.well_formed and parsed.answer == "left"


def test_a_branch_with_a_right_answer_is_not_wrong() -> None:
    grown_tree = tree(
        node("0", "", node("0.0", "a", ends=["x" + LEFT, "y" + RIGHT]), node("0.1", "b", ends=["z" + LEFT]))
    )
    # 0.0 is not wrong, but its own rollouts are branches too
    assert texts(grown_tree, "corrected") == [f"<think>a\ny\nWait, no.\nx{LEFT}"]


def test_a_branch_with_a_right_but_malformed_answer_is_not_wrong_either() -> None:
    ends = ["x" + RIGHT, "y\ny" + LEFT]  # the second is right but repeats a line
    grown_tree = tree(node("0", "", node("0.0", "a", ends=ends), node("0.1", "b", ends=["z" + LEFT])))
    assert texts(grown_tree, "corrected") == []


def test_branches_with_the_same_first_step_make_no_correction() -> None:
    grown_tree = tree(node("0", "", node("0.0", "a", ends=["b\nx" + LEFT, "b\ny" + RIGHT])))
    assert texts(grown_tree, "corrected") == []


def test_equal_texts_are_kept_once_and_the_shortest_are_taken_in_a_stable_order() -> None:
    ends = ["ccc" + LEFT, "aaa" + LEFT, "aaa" + LEFT, "b" + LEFT, "x\ny" + LEFT]
    grown_tree = tree(node("0", "", node("0.0", "s", node("0.0.0", "b", answer="left"), ends=ends)), direct_chains=3)
    assert texts(grown_tree, "direct") == [f"<think>s\n{x}{LEFT}" for x in ("b", "ccc", "aaa")]
    assert linearize(grown_tree) == linearize(Tree.from_dict(grown_tree.to_dict()))


def test_at_most_the_configured_number_of_each_kind() -> None:
    wrong = [node(f"0.{i}", f"w{i}", ends=[f"v{i}" + RIGHT]) for i in range(4)]
    right = [node(f"0.{i}", f"r{i}", ends=[f"v{i}{k}" + LEFT for k in range(4)]) for i in range(4, 8)]
    grown_tree = tree(node("0", "", *wrong, *right))
    kinds = [trace.kind for trace in linearize(grown_tree)]
    assert kinds == ["direct"] * 8 + ["corrected"] * 2


def test_invalid_chains_are_discarded() -> None:
    ends = [
        "a\na" + LEFT,  # repeats a line
        "s" + LEFT,  # repeats the node's own line
        "b</think>oops<answer>left</answer>",
        "b</think><answer>left</answer><answer>left</answer>",
        "see <|image_pad|>" + LEFT,
        "half \ufffd of it" + LEFT,
    ]
    assert linearize(tree(node("0", "", node("0.0", "s", ends=ends)))) == []
    assert linearize(tree(Node("0"))) == []


def test_blank_lines_of_a_chain_are_skipped() -> None:
    chain = read_chain("<think>\na \n\n b</think>\n<answer>\n(A)  left\n</answer>")
    assert chain is not None
    assert chain.text == "<think>a\nb</think><answer>(A) left</answer>"
    assert read_chain("<think></think><answer>left</answer>") is None
