"""Plain records out: JSON lines and TensorBoard events, the time ledger, the HTML report, traces in the terminal."""
