"""Tables, plots and a page of a study's results, for people and for papers."""
