"""From a request to tokens: sampling, stopping, generating, and the tasks made of them."""
