"""What a run has to do, before Ray starts: the clips that are found minus the labels that are there."""
