"""The figures: each module measures one kind of work, and says which bar the issue sets."""
