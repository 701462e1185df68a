"""How the steps are chained, compiled, run and submitted."""
