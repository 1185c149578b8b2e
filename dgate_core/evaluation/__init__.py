"""Scores, references and gates: what makes a picture right is measured here."""
