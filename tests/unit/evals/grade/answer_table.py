"""Answers as models write them, with the verdict that a careful reader gives: (task, expected, text, outcome)."""

from typing import Any

R, W, N = "right", "wrong", "no_answer"


def boxed(*contents: str) -> list[str]:
    return [f"Therefore the answer is $\\boxed{{{content}}}$." for content in contents]


NUMBERS: list[tuple[str, str, list[str]]] = [
    ("70000", R, boxed("70000", "70,000", "70{,}000", "70\\,000", "70,\\!000", "70\\!000", "70 000", "70~000")),
    ("70000", R, boxed("\\$70,000", "70{,}000 \\text{ dollars}", "70\u2009000", "70'000", "7 \\times 10^4", "7e4")),
    (
        "70000",
        R,
        boxed(
            "70 \\text{ thousand}",
            "70{,}000.00",
            "\\text{70,000}",
            "70 \\, 000",
            "70\\text{,}000",
            "\\mathbf{70000}",
            "{70000}",
        ),
    ),
    ("70000", W, boxed("70", "7000", "700,000", "70{,}001", "7 \\times 10^3", "70, 000", "70000 \\text{ or } 7000")),
    ("1,450,000", R, boxed("1450000", "1{,}450{,}000", "1.45 \\text{ million}", "1.45 \\times 10^{6}", "14,50,000")),
    ("5", R, boxed("\\frac{10}{2}", "\\dfrac{10}{2}", "10/2", "2 + 3", "x = 5", "5.0", "05", "5 \\%", "\\sqrt{25}")),
    (
        "5",
        R,
        boxed("\\frac{\\frac{20}{2}}{2}", "8 - 3 = 5", "5 \\text{ apples}", "(5)", "5:00 \\text{ pm}", "10 \\div 2"),
    ),
    (
        "5",
        W,
        boxed("\\frac{5}{2}", "2", "5 \\text{ and } 6", "5, 5", "5:30", "-5", "5^2", "4 + 5", "1/0", "9^{9^{9^9}}"),
    ),
    ("3.5", R, boxed("3\\frac{1}{2}", "3 1/2", "\\frac{7}{2}", "3\\tfrac12", "3.50 \\text{ hours}", "3\u00bd")),
    ("3.5", W, boxed("3", "31/2", "3 \\cdot \\frac{1}{2}", "3{,}5")),
    (
        "260",
        R,
        boxed("260\\text{ m}^2", "260 m^2", "260\\,\\text{cm}^3", "260 \\text{ km/h}", "260\u00b0", "260^\\circ"),
    ),
    ("260", R, boxed("260 \\text{ km (in 2 hours)}", "260 \\text{ miles in 4 hours}", "260 \\text{ square feet}")),
    (
        "260",
        R,
        boxed("260\\frac{\\text{km}}{\\text{h}}", "260 \\, \\frac{m}{s}", "260 \\frac{\\mathrm{g}}{\\mathrm{L}}"),
    ),
    ("260", W, boxed("\\frac{260}{2}\\frac{\\text{km}}{\\text{h}}")),
    ("260", W, boxed("26 \\text{ m}^2", "2 \\text{ (for 260 m)}", "130 \\times 3")),
    ("-3", R, boxed("-3", "\u22123", "12 - 15", "-\\$3")),
    ("-3", W, boxed("3", "15 - 12")),
    ("18", R, ["#### 18", "Answer: 18", "**Answer:** 18", "The answer is 18.", "The answer is: **18** dollars"]),
    ("18", R, ["The final answer is\n\n**$18**", "She makes $18.", "9 * 2 = 18", "She makes 9 * 2 = $18 every day."]),
    (
        "18",
        R,
        ["The answer is 18 because 9 * 2 = 18.", "\\fbox{18}", "\\boxed 18", "1. 16 - 7 = 9\n2. 9 * 2 = 18 dollars"],
    ),
    (
        "18",
        R,
        ["\\boxed{9} is the first, \\boxed{18} the last", "It is 18 km/h (in 2 hours).", "- 18 eggs", "18 m\u00b2"],
    ),
    ("18", W, ["It is 17.", "Answer: 18 or 19", "first 18, then 13", "Ready at 6:18 pm", "18-5", "\\boxed{18:18}"]),
    ("20", W, ["The train leaves at 2:20 pm.", "\\boxed{2:20 \\text{ pm}}", "The ratio is 1:20."]),
    ("20", N, ["", "No idea.", "\\boxed{}", "It cannot be known."]),
    ("12", R, ["It is twelve (12).", "The total is 12 (a dozen).", "\\boxed{\\text{twelve}} that is 12"]),
    ("1875", R, ["So 1,875 in all.", "So 1 875 in all.", "So 1{,}875 in all.", "Total: 1875.00."]),
]
MATH: list[tuple[str, str, list[str]]] = [
    ("2516_8", R, boxed("2516_8", "2516_{8}", "2516", "2516_{\\text{eight}}")),
    ("2516_8", W, boxed("2516_9", "2516_{10}", "2517_8", "1358")),
    ("15\\mbox{ cm}^2", R, boxed("15", "15 \\text{ cm}^2", "15\\text{ square centimeters}", "15 cm^2")),
    (
        "15\\mbox{ cm}^2",
        W,
        boxed("15 m^2", "15 \\text{ m}^2", "15 \\text{ cm}^3", "16 \\text{ cm}^2", "15 \\text{ in}^2"),
    ),
    ("7", R, boxed("7", "\\mathbf{7}", "{{7}}", "x = 7", "7.0", "\\frac{14}{2}", "\\text{7}", "007")),
    ("7", W, boxed("7 and 7", "7, 7", "7 \\text{ and } 7", "6 \\text{ or } 7", "x = 8", "\\{7, 8\\}")),
    ("73", R, boxed("073", "\\mathbf{073}", "73.")),
    ("\\text{east}", R, boxed("east", "x = east", "{\\text{east}}", "\\textbf{East}", "\\mathrm{east}")),
    ("\\text{east}", W, boxed("west", "x = west", "\\text{northeast}")),
    ("(1,2]", R, boxed("(1,2]", "1<x\\le2", "1 < x \\leq 2", "x \\in (1,2]", "2 \\ge x > 1", "\\left(1, 2\\right]")),
    ("(1,2]", W, boxed("[1,2]", "1 \\le x \\le 2", "1 < x < 2", "(1,3]", "x > 1")),
    ("(-\\infty, 2) \\cup (3, \\infty)", R, boxed("x < 2 \\text{ or } x > 3", "(-\\infty,2)\\cup(3,\\infty)")),
    ("(-\\infty, 2) \\cup (3, \\infty)", W, boxed("2 < x < 3", "x \\le 2 \\text{ or } x > 3")),
    ("\\begin{pmatrix} -2 \\\\ -14 \\\\ -7 \\end{pmatrix}", R, boxed("(-2, -14, -7)", "\\langle -2, -14, -7 \\rangle")),
    ("\\begin{pmatrix} -2 \\\\ -14 \\\\ -7 \\end{pmatrix}", W, boxed("(-2, -7, -14)", "-23")),
    ("(6,31,-1)", R, boxed("\\begin{pmatrix} 6 \\\\ 31 \\\\ -1 \\end{pmatrix}", "\\left(6, 31, -1\\right)")),
    ("90^\\circ", R, boxed("90", "90^{\\circ}", "90 \\text{ degrees}")),
    ("90^\\circ", W, boxed("89^\\circ", "90 \\text{ radians}")),
    ("\\$18.90", R, boxed("18.90", "\\$18.9", "18.90 \\text{ dollars}")),
    ("\\$18.90", W, boxed("18.90 \\text{ cents}", "\\$19")),
    ("1,-2", R, boxed("-2, 1", "1 \\text{ and } -2", "\\{1, -2\\}", "x = 1, -2")),
    ("1,-2", W, boxed("1", "1, 2", "1, -2, 3")),
    ("\\frac{14}{3}", R, [*boxed("14/3", "4\\frac{2}{3}"), "\\fbox{\\frac{14}{3}}", "The answer is $\\frac{14}{3}$."]),
    ("p - q", W, boxed("q - p", "p + q")),
    ("y = 2x + 3", R, boxed("y = 3 + 2x", "2x + 3")),
    ("\\text{(C)}", R, boxed("C", "\\text{C}", "(C)", "\\text{(C)}\\ 5")),
    ("\\text{(C)}", W, boxed("D", "\\text{(B)}")),
    ("6+9i", R, boxed("9i + 6", "3(2+3i)")),
    ("11\\sqrt2", R, boxed("11\\sqrt{2}", "\\sqrt{242}")),
    ("5", R, ["**5**", "So we have **$5$**", "the answer is **x = 5**."]),
    ("5", W, ["**6**", "$2^5$"]),
    ("5", N, ["I do not know.", ""]),
]
CHOICES: list[tuple[str, str, list[str]]] = [
    (
        "C",
        R,
        boxed("C", "c", "\\text{C}", "(C)", "\\textbf{(C)}", "\\text{C) Cold A phase}", "\\text{Option C}", "{C}"),
    ),
    ("C", R, boxed("C: 5 m", "\\mathbf{C}", "C.")),
    ("C", W, boxed("A", "C, D", "C \\text{ and } D", "\\text{A) C phase}")),
    (
        "C",
        R,
        ['"answer": "C"', '{"answer": "C"}', "{'answer': 'c'}", '```json\n{"why": "A is no", "answer": "C"}\n```'],
    ),
    (
        "C",
        R,
        ["**Answer:** C", "**Answer: C**", "Answer: (C)", "Answer:\nC", "Answer: \\text{C}", "ANSWER: C", "Answer - C"],
    ),
    (
        "C",
        R,
        ["The correct choice is C", "Therefore it is option C.", "The answer is option **C**: 5 m", "I choose C."],
    ),
    ("C", R, ["(C) is right, since (A) violates B.", "C. The others, A and B, fail.", "The answer is C, not (A)."]),
    (
        "C",
        R,
        ["The answer is C, A is wrong.", "A and B are wrong, so C", "(A) is tempting, but (C)", "C", "(C)", "**C**"],
    ),
    ("C", R, ["The answer is not A but C.", "It must be (C); (A), (B) and (D) fail.", "The answer is c.", "C) 5 m/s"]),
    ("C", W, ["Answer: C or D", "Answer: C and D", "Answer: B/C", "The answer is B.", '"answer": "B"', "B", "(D)"]),
    ("C", W, ['"answer": "C or D"', "(B) is right, since (C) violates A.", "(A) no. (B) yes. (C) no."]),
    ("C", N, ["All of them are nice.", "", "The answer is a bit of everything.", "I think that C++ is fast"]),
    ("D", N, ["The answer is D-glucose"]),
    ("A", R, ["The answer is A because light is slow.", "A", "Answer: A", "The answer is A."]),
    ("A", N, ["The answer is A good question"]),
]
DOUBLE = "n = int(input())\nprint(n * 2)\n"
DOUBLE_TESTS = [{"input": "3\n", "output": "6\n"}, {"input": "-4\n", "output": "-8\n"}]
CALL_TESTS = [{"input": "3", "output": "6", "function": "double"}]
HEAD = 'def half(n):\n    return n // 2\n\ndef double_half(n):\n    """Twice the half."""\n'
CHECK_TESTS = [
    {
        "function": "double_half",
        "setup": HEAD,
        "check": "def check(candidate):\n    assert candidate(5) == 4\n    assert candidate(6) == 6\n",
    }
]
INDENTED = "".join(f"   {line}\n" for line in DOUBLE.splitlines())
PROGRAMS: list[tuple[list[dict[str, str]], str, list[str]]] = [
    (
        DOUBLE_TESTS,
        R,
        [
            f"```python\n{DOUBLE}```",
            f"```Python\n{DOUBLE}```",
            f"```\n{DOUBLE}```",
            f"````py\n{DOUBLE}````",
            f"~~~python\n{DOUBLE}~~~",
            f"```python\n{DOUBLE}```\nExample:\n```\n3\n6\n```",
            f"```python\n{DOUBLE}```\nExample:\n```text\ninput: 3\n```\nRun it:\n```bash\necho 3 | python a.py\n```",
            f"```python\n{DOUBLE}```\nIt gives:\n```python\nprint(6)\n```",
            f"```python\nprint(0)\n```\nNo, rather:\n```python\n{DOUBLE}```",
            f"1. As this:\n\n   ```python\n{INDENTED}   ```\n",
            f"The program:\n```python\n{DOUBLE}",
            DOUBLE,
            f"Here it is:\n\n{DOUBLE}\nIt reads a number and doubles it.",
            f"```python\nfrom __future__ import annotations\n{DOUBLE}```",
        ],
    ),
    (
        DOUBLE_TESTS,
        W,
        [
            "```python\nprint(6)\n```",
            "```python\nn = int(input())\nprint(n * 3)\n```",
            "```python\nn = int(input()\n```",
            "```cpp\nint main() { return 0; }\n```",
        ],
    ),
    (DOUBLE_TESTS, N, ["I do not know.", "", "The answer is 6."]),
    (
        CALL_TESTS,
        R,
        [
            "```python\ndef double(n):\n    return 2 * n\n```\nUsage:\n```python\nprint(double(3))\n```",
            "```python\nclass Solution:\n    def double(self, n):\n        return 2 * n\n```",
            "def double(n):\n    return 2 * n",
        ],
    ),
    (
        CHECK_TESTS,
        R,
        [
            "```python\ndef double_half(n):\n    return 2 * half(n)\n```",  # what the question gave is there
            "```python\ndef double_half(n):\n    return n - n % 2\n```\n\n```python\nprint(double_half(3))\n```",
        ],
    ),
    (
        CHECK_TESTS,
        W,
        [
            "```python\ndef double_half(n):\n    return n\n```",
            "```python\ndef other(n):\n    return 2 * half(n)\n```",
            "```python\nimport sys\ndef double_half(n):\n    sys.exit(0)\n```",
            "```python\nimport os\ndef double_half(n):\n    os._exit(0)\n```",
        ],
    ),
    (CALL_TESTS, W, ["```python\ndef double(n):\n    return n\n```", "```python\nprint(6)\n```"]),
]
GROUPS: dict[str, list[tuple[Any, str, list[str]]]] = {
    "gsm8k": [*NUMBERS],
    "math500": [*MATH],
    "gpqa_diamond": [*CHOICES],
    "livecodebench": [*PROGRAMS],
}
ANSWERS: list[tuple[str, Any, str, str]] = [
    (task, expected, text, outcome)
    for task, groups in GROUPS.items()
    for expected, outcome, texts in groups
    for text in texts
]
