"""A spec becomes a running, limited, accounted crate."""
