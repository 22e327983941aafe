"""The places where CI runs, and the one suite that runs in each of them."""
