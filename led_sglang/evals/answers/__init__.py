"""From what a model wrote to the answer in it: numbers, choices, programs, mathematics."""
