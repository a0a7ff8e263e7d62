"""Reading of source documents: chunks, sentences, names and numbers; pure functions of text."""
