"""From predictions to numbers: metrics, scores per dataset and task, and the paper's own scores."""
