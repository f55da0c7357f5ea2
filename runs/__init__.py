"""A run: from a composed configuration to a folder with weights, scores, predictions and figures."""
