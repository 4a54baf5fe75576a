"""Tables, statistics, figures and pages made from the scores of a benchmark."""
