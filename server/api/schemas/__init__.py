"""Request and response models of /api/v1, by what they are about."""
