//! FedPipe.
