"""The only importer of paramiko: connections, host keys, exec, push, pull."""
