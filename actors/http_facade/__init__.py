"""The HttpFacade: the lives of the two HTTP servers."""
