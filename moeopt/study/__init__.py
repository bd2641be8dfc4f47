"""Studies: many cells (instance × problem × formulation × solver × seed), none of them lost."""
