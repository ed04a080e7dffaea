//! The vocabulary that Tollway's layers share, and the layer that reads an answer into a verdict.
