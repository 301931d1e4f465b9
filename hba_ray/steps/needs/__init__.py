"""What a step needs of the machines that do it, and whether a machine has it."""
