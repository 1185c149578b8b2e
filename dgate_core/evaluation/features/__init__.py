"""Feature extractors: pictures become vectors that corpus and picture metrics compare."""
