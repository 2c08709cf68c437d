"""The verbs, one file each. Know about a terminal; hold no logic that another verb needs."""
