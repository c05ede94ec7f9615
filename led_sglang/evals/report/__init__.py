"""Tables, figures and the page that an experiment ends with."""
