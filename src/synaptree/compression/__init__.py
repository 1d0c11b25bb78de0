"""One call that makes a network as small as its accuracy on validation data allows, within a budget of time."""
