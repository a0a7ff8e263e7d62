"""The rules, written once: sync functions of a Session and plain values, which raise AppError."""
