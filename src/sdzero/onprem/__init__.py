"""What a site needs before a run: is everything here that the run will use, and does it hold?"""
