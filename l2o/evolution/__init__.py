"""Evolution strategies of evosax as learners."""
