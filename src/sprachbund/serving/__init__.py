"""The service: HTTP in the shape of OpenAI's audio API, live captions over a WebSocket, and the page.

One thread for each loaded model owns all computing; requests and live sessions share its batches.
"""
