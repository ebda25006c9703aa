"""How a server makes one step of the messages of a round: one file for each rule."""
