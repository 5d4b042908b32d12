"""What is asked: the question, and the sources that questions come from."""
