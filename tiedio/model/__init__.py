"""The variables of a live model: found, named, put in each other's place, tied."""
