"""What is added to or filled into the scores, as the mask of one Attention op."""
