"""The scenarios of the five documents in seeds/: each follows the sequence diagrams of its document arrow by arrow."""
