"""What a step of LED costs a GPU, by counting: instructions from the compiler, bytes and launches from the code.

    python -m benchmarks.gpu.cost --json

`device` holds every constant with its source, `sass` reads what the compiler made, `plan` records what a step launches,
`work` says what each kernel's programs do, `price` turns that into microseconds, `models` gives shapes and budgets.
"""
