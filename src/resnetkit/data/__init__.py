"""Pictures and their classes: what DATA can be, who reads it, and what is wrong with it. No torch."""
