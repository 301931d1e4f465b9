"""From the rows of an atlas to the batches of a trainer."""
