"""From annotations to a trained network, in a run folder."""
