//! FedPipe: transport.
