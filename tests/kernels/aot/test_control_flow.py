"""Loops are found by the flow of control, wherever a compiler put their parts."""

from __future__ import annotations

from tinkergate_kernels.aot.control_flow import Instruction, loops


def program(text: str) -> list[Instruction]:
    """Lines of `label: opcode -> target`; `opcode => target` if it always jumps, `end` ends."""
    found = []
    for line in text.split(";"):
        label, colon, rest = line.strip().rpartition(":")
        opcode, _, target = rest.strip().replace("=>", "->").partition("->")
        found.append(
            Instruction(
                opcode=opcode.strip(),
                text=line,
                labels=(label,) if colon else (),
                jump=target.strip() or None,
                falls_through="=>" not in rest and opcode.strip() != "end",
            )
        )
    return found


def bodies(text: str) -> list[list[int]]:
    return [sorted(loop.body) for loop in loops(program(text))]


def test_straight_code_has_none() -> None:
    assert bodies("a; b -> x; c; x: d; end") == []
    assert loops([]) == []


def test_a_loop_is_what_is_between_its_header_and_its_branch() -> None:
    assert bodies("a; top: b; c; d -> top; end") == [[1, 2, 3]]


def test_a_branch_inside_belongs_to_it_and_what_leaves_does_not() -> None:
    assert bodies("top: a -> out; b -> skip; c; skip: d => top; out: end") == [[0, 1, 2, 3]]


def test_a_loop_inside_another() -> None:
    outer, inner = loops(program("a; top: b; deep: c; d -> deep; e -> top; end"))
    assert sorted(outer.body) == [1, 2, 3, 4]
    assert sorted(outer.own) == [1, 4]
    assert sorted(inner.body) == sorted(inner.own) == [2, 3]


def test_a_wait_that_was_moved_to_the_end_is_part_of_its_loop() -> None:
    text = "a; top: b -> wait; back: c; d -> top; end; wait: e -> wait; f => back"
    outer, inner = loops(program(text))
    assert sorted(outer.body) == [1, 2, 3, 5, 6]
    assert sorted(inner.body) == [5]


def test_code_that_is_never_reached_is_no_loop() -> None:
    assert bodies("a; end; lost: b => lost") == []


def test_a_jump_into_the_middle_makes_no_natural_loop() -> None:
    assert bodies("a -> middle; top: b; middle: c; d -> top; end") == []
