"""Judge validation (Appendix B.3): agreement between judges, and error rates where the truth is known."""
