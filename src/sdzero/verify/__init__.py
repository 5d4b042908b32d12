"""How responses are graded: verdicts, verifiers, and the pool of processes that runs them."""
