"""What components of several kinds share."""
