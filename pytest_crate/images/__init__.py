"""Image references become root filesystems in a content-addressed store."""
