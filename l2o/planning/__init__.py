"""From the settings of a run to the parts they name."""
