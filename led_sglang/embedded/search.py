"""Writes a line of thought for a countdown: steps tried at random, dead ends, ways back, and at last the target.

The searcher is no oracle: at each step it picks, now and then, one that can still lead to the target and otherwise any.
A model learns a search from it and not a formula, and finds some targets at once, some late, some never.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

from led_sglang.embedded.expressions import (
    OPERATIONS,
    Expression,
    Node,
    is_allowed,
    ready_nodes,
    reduce_at,
    show,
    value,
)

__all__ = ["ANSWERS", "WORDS", "luck", "write"]

SKILL = 0.35  # how often a step is taken for its promise
LAST_SKILL = 0.75  # the same for two numbers, where the target can nearly be seen
MAX_DEAD_ENDS = 3  # a search with more is thrown away: it would be too long to learn from

OPENERS = ("Numbers", "Given", "Here are", "We have", "There are", "I have", "Look at", "Take")
TRY = ("Try", "Maybe", "Perhaps", "Suppose", "Consider", "Let me do", "What about", "Begin with", "Guess", "Pick")
LEFT = ("left", "leaves", "leaving", "now", "remain", "remaining", "giving", "with")
THEN = ("Then", "Next", "Now", "So", "And", "Also", "Here", "There")
OR = ("Or", "Else", "Otherwise", "Instead", "But", "Again", "Still", "Yet")
NO = ("no", "wrong", "not it", "fails", "bad", "off", "nope", "useless")
TOO_SMALL = ("too small", "too low", "below", "short", "small", "less", "low", "under")
TOO_BIG = ("too big", "too high", "above", "over", "big", "more", "high", "beyond")
BACK = ("Back to", "Again from", "Return to", "Once more", "Another way", "Restart from", "Undo to", "Go to")
YES = ("yes", "right", "good", "found", "done", "works", "great", "hit")
SO = ("So", "Hence", "Thus", "Therefore", "That is", "This means", "It is", "In full")
ANSWERS = ("The answer is {}.", "It is {}.", "The result is {}.", "Use {}.")

WORDS = (*OPENERS, *TRY, *LEFT, *THEN, *OR, *NO, *TOO_SMALL, *TOO_BIG, *BACK, *YES, *SO, *ANSWERS)

Numbers = tuple[int, ...]  # what is left to use, sorted
Step = tuple[int, str, int]  # left operand, operation, right operand


def result(step: Step) -> int:
    return OPERATIONS[step[1]](step[0], step[2])


@lru_cache(maxsize=200_000)
def steps(numbers: Numbers) -> tuple[Step, ...]:
    """Every step allowed on two of the numbers, once each, the larger operand first; none leads to zero."""
    found: dict[Step, None] = {}
    for i in range(len(numbers)):
        for j in range(i):
            for op in OPERATIONS:
                step = (numbers[i], op, numbers[j])
                if is_allowed(op, numbers[i], numbers[j]) and result(step) > 0:
                    found[step] = None
    return tuple(found)


def after(numbers: Numbers, step: Step) -> Numbers:
    rest = list(numbers)
    rest.remove(step[0])
    rest.remove(step[2])
    return tuple(sorted((*rest, result(step))))


@lru_cache(maxsize=200_000)
def luck(numbers: Numbers, target: int) -> float:
    """The chance that steps taken at random use all the numbers and end at the target; 0 where nothing does."""
    if len(numbers) == 1:
        return float(numbers[0] == target)
    options = steps(numbers)
    return sum(luck(after(numbers, step), target) for step in options) / max(1, len(options))


@dataclass
class Search:
    """One search from the numbers to the target; `path` holds the steps from the start to the current numbers."""

    numbers: Numbers
    target: int
    rng: random.Random

    def __post_init__(self) -> None:
        self.path: list[Step] = []
        self.tried: dict[tuple[Step, ...], set[Step]] = {}
        self.num_dead_ends = 0
        self.sentences = [f"{self.rng.choice(OPENERS)} {self._listed(self.numbers)}, target {self.target}."]

    def run(self) -> bool:
        """Whether the target was found before the dead ends were too many."""
        words: tuple[str, ...] = TRY
        while True:
            step = self._choose()
            if step is None:
                if not self.path:
                    return False
                self._go_back(len(self.path) - 1)
                words = TRY
                continue
            self._take(step, words)
            words = THEN
            left = self._here()
            if left == (self.target,):
                return True
            if len(left) == 1:
                self.num_dead_ends += 1
                if self.num_dead_ends > MAX_DEAD_ENDS:
                    return False
                words = self._leave_dead_end()

    def _here(self) -> Numbers:
        numbers = self.numbers
        for step in self.path:
            numbers = after(numbers, step)
        return numbers

    def _choose(self) -> Step | None:
        """An untried step from here; None where there is none."""
        here = self._here()
        tried = self.tried.setdefault(tuple(self.path), set())
        untried = [step for step in steps(here) if step not in tried]
        if not untried:
            return None
        if self.rng.random() < (LAST_SKILL if len(here) == 2 else SKILL):
            untried = [step for step in untried if luck(after(here, step), self.target) > 0] or untried
        step = self.rng.choice(untried)
        tried.add(step)
        return step

    def _take(self, step: Step, words: tuple[str, ...]) -> None:
        self.path.append(step)
        left, op, right = step
        if op != "-" and self.rng.random() < 0.5:
            left, right = right, left
        here = self._here()
        end = f"{self.rng.choice(LEFT)} {self._listed(here)}" if len(here) > 1 else self._verdict(here[0])
        self.sentences.append(f"{self.rng.choice(words)} {left} {op} {right} = {result(step)}, {end}.")

    def _verdict(self, number: int) -> str:
        if number == self.target:
            return self.rng.choice(YES)
        if self.rng.random() < 0.5:
            return self.rng.choice(NO)
        return self.rng.choice(TOO_SMALL if number < self.target else TOO_BIG)

    def _leave_dead_end(self) -> tuple[str, ...]:
        """Undoes the last step, or goes further back; returns the words that open the next step."""
        if self.rng.random() < 0.4:
            self.path.pop()
            return OR
        self._go_back(self.rng.randrange(max(1, len(self.path) - 1)))
        return TRY

    def _go_back(self, depth: int) -> None:
        del self.path[depth:]
        self.sentences.append(f"{self.rng.choice(BACK)} {self._listed(self._here())}.")

    def _listed(self, numbers: Numbers) -> str:
        return " ".join(map(str, self.rng.sample(numbers, len(numbers))))

    def solution(self) -> list[Expression]:
        """The last step, then the same with one more operand written out at a time, down to the given numbers."""
        items: dict[int, list[Expression]] = {number: [number] * self.numbers.count(number) for number in self.numbers}
        for left, op, right in self.path:
            node = Node(op, items[left].pop(), items[right].pop())
            items.setdefault(value(node), []).append(node)
        tree = items[self.target][-1]
        return _written_out(tree, self.rng)


def _written_out(tree: Expression, rng: random.Random) -> list[Expression]:
    """From the root's operation on two values to the whole tree."""
    assert isinstance(tree, Node)
    states: list[Expression] = [tree]
    while True:
        ready = list(ready_nodes(states[0]))
        if len(ready) == 1 and not ready[0][0]:
            return states
        path, _ = rng.choice([item for item in ready if item[0]])
        states.insert(0, reduce_at(states[0], path))


def write(numbers: Numbers, target: int, rng: random.Random) -> tuple[str, str]:
    """The thinking and the expression found. The target must be within reach."""
    while True:
        search = Search(tuple(sorted(numbers)), target, rng)
        if search.run():
            break
    chain = [show(expression) for expression in search.solution()]
    search.sentences.append(f"{rng.choice(SO)} {target} = {' = '.join(chain)}.")
    return " ".join(search.sentences), chain[-1]
