// A click on the icon is what lets the extension read that tab (activeTab). The worker opens the side panel and says which
// tab it was; it listens to nobody else, and no page can send it anything.

chrome.action.onClicked.addListener((tab) => {
  chrome.sidePanel.open({ windowId: tab.windowId }); // first: it must be called within the click
  chrome.storage.session.set({ clicked: { tabId: tab.id, windowId: tab.windowId, at: Date.now() } });
});

// Scripts that run in pages, ours included, may not look at the profile or the token.
chrome.storage.local.setAccessLevel({ accessLevel: "TRUSTED_CONTEXTS" });
