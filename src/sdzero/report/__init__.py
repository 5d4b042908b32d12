"""One self-contained HTML page of a run or of several: reads run folders only, and imports no torch."""
