//! Tower layers for a deadline over a whole HTTP call and a time limit on each attempt.
