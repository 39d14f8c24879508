//! Nothing to link: the models are integration tests, and cargo wants a library beside them.
