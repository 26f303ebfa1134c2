"""One model on one machine: train it, measure it, use it on local files."""
